"""What an operator runs: commands, options, pipeline definitions and publishing."""
