"""What the data is: Arrow schemas, configuration, manifest and reject reasons."""
