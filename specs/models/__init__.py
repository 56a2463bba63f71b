"""[torch] The reference modules that a spec's components describe: what every exported graph is compared with.

`layers` holds what towers share, `vision`, `clip_text`, `decoder` and `fusion` one family each.
"""
