POLICIES = ("order", "random", "diverse", "doubt")  # policy.py; here, so that a command line is parsed without NumPy
