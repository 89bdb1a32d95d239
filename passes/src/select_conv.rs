//! Convolution algorithms and workspaces.
