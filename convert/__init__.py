"""The application: plans, streaming execution, resume, seals and the command line."""
