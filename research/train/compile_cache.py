"""placeholder until written"""
def enable(cache_dir=None): pass
