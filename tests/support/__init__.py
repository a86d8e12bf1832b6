"""What the tests share: problems and their answers, processes with a purpose, compilers, logs."""
