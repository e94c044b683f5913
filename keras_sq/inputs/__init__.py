"""The inputs of models: their structure, random ones, and a user's data."""
