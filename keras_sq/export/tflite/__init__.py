"""TFLite files: their kernels, the forms these are stored in, and the runtime."""
