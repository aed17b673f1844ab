//! The archiver flows: the program baked into the runtime image.
