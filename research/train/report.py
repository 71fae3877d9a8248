"""placeholder until written"""
def write_report(path): pass
