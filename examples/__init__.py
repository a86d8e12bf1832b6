"""A course on recurrent networks: a folder is one system on one task, tests beside it.

A folder's ``model`` holds the task as plain functions, so that the benchmarks measure the very code
that trains; its ``workload`` answers what the driver asks. README.md says where the rest is.
"""
