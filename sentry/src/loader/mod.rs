//! Programs: ELF, scripts, the first stack.
