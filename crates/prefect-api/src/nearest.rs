//! The known word that looks most like an unknown one.

/// The word with the fewest letters to change, add or take away; case does not count.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known.into_iter().min_by_key(|candidate| distance(word, candidate))
}

/// Levenshtein's distance, one row of his table at a time.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.to_lowercase().chars().collect();
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for (line, letter) in from.to_lowercase().chars().enumerate() {
        let mut row = vec![line + 1];
        let mut left = line + 1;
        for (other, pair) in to.iter().zip(above.windows(2)) {
            let &[diagonal, above] = pair else { break };
            left = (diagonal + usize::from(letter != *other)).min(above + 1).min(left + 1);
            row.push(left);
        }
        above = row;
    }
    above.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{distance, nearest};

    #[test]
    fn counts_letters_changed_added_and_removed() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", ""), 3);
        assert_eq!(distance("S3_Region", "s3_REGION"), 0);
    }

    #[test]
    fn finds_the_word_that_was_meant() {
        assert_eq!(nearest("S3_REGOIN", ["S3_ENDPOINT", "S3_REGION"]), Some("S3_REGION"));
        assert_eq!(nearest("x", []), None);
    }
}
