"""The command `ipt`: one file a group of verbs.  Importing it loads neither torch nor megatron."""
