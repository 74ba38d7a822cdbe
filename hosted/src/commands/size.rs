//! Sizes as people write them: bytes, or a number with K, M, G, T or P behind it, each 1024 times
//! the one before.

/// The size in bytes that a text names.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size: a number with K, M, G, T or P behind it");
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        "P" | "PIB" => 50,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is too large"))
}

/// A size as people read it: in the largest unit that needs no fraction, or with one digit behind
/// the point.
pub(crate) fn show(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (bytes.checked_ilog2().unwrap_or(0) / 10) as usize;
    let one = 1u64 << (10 * unit);
    match bytes % one {
        0 => format!("{} {}", bytes / one, units[unit]),
        rest => {
            let tenths = u128::from(rest) * 10 / u128::from(one);
            format!("{}.{tenths} {}", bytes / one, units[unit])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{parse, show};

    #[test]
    fn sizes_have_binary_suffixes() {
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("64M"), Ok(64 << 20));
        assert_eq!(parse("8GiB"), Ok(8 << 30));
        assert_eq!(parse("2t"), Ok(2 << 40));
        for wrong in ["", "M", "1.5G", "-1", "8X", "1 G", "99999999T", "18446744073709551616"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit() {
        assert_eq!(show(0), "0 B");
        assert_eq!(show(64 << 20), "64 MiB");
        assert_eq!(show((64 << 20) + (32 << 10)), "64.0 MiB");
        assert_eq!(show(3 << 29), "1.5 GiB");
        assert_eq!(show(u64::MAX), "15.9 EiB");
    }
}
