//! What proves Outrider: the model of a file system that mounts are compared with.

pub mod model;
