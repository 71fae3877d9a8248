"""Tables of records: a length and a pure `record(i)` over text files, columns, pairs, images, sounds and TFDS."""
