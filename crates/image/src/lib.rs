//! Content-addressed image store: pull, load, import, unpack, prune
