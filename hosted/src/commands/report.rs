//! Reports: one value, shown as JSON or as indented text.
//!
//! # Invariants
//!
//! * Both are made from the same value, so neither says what the other doesn't.
//! * A reader that goes away early ends the program quietly.

use super::Failure;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};

/// Writes to standard output.
pub(crate) fn put(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write to standard output: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Shows a report.
pub(crate) fn show(report: &Value, json: bool) -> Result<(), Failure> {
    let mut text = String::new();
    if json {
        let _ = writeln!(text, "{report:#}");
    } else {
        write_value(&mut text, report, 0);
    }
    put(text.as_bytes())
}

/// A value in a line, without braces where there is no need for them.
fn inline(value: &Value) -> String {
    match value {
        Value::String(string) => string.clone(),
        Value::Null => "-".to_owned(),
        Value::Object(fields) => {
            let show = |(name, value): (&String, &Value)| format!("{name} {}", inline(value));
            fields.iter().map(show).collect::<Vec<_>>().join(", ")
        }
        Value::Array(values) => values.iter().map(inline).collect::<Vec<_>>().join(" "),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

fn is_flat(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.values().all(|value| !value.is_object() && is_flat(value)),
        Value::Array(values) => values.iter().all(|value| !value.is_object() && !value.is_array()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}

fn write_value(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let listed = value.is_object() || (value.is_array() && !is_flat(value));
                if listed {
                    let _ = writeln!(text, "{indent}{name}:");
                    write_value(text, value, depth + 1);
                } else {
                    let _ = writeln!(text, "{indent}{name}: {}", inline(value));
                }
            }
        }
        Value::Array(values) => {
            for value in values {
                if is_flat(value) {
                    let _ = writeln!(text, "{indent}{}", inline(value));
                } else {
                    let _ = writeln!(text, "{indent}-");
                    write_value(text, value, depth + 1);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            let _ = writeln!(text, "{indent}{}", inline(value));
        }
    }
}
