//! GPU address spaces: the rules they must keep, by number; the steps requests turn into; and random requests against
//! a model that knows nothing but pages.

mod driver;
mod lifetimes;
mod model;
mod random;
mod rules;
mod soak;
mod steps;
mod submissions;
