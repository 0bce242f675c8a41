//! The fakes themselves: what the other tests take for granted.

mod auth;
mod endpoints;
mod faults;
mod hosts;
mod limits;
