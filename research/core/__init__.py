"""Floor 1: parameters, sharding, configs, hypers, random keys, dtypes and chips. No model, no data, no files."""
