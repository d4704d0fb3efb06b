//! malai
fn main() {}
