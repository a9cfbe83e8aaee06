"""The command line: parse, load the config, call."""
