"""Reading and writing files safely: damaged files, old files, atomic writes."""
