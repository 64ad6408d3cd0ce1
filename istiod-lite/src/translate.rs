//! From the objects a resource depends on to the resource. Pure.
