//! Names of passes, for text tests and tools.
