//! A section of a guide, read as people read it: what to type, what to write into which file, what to see.
//!
//! - A `sh` block is typed into the terminal; into another one, where it goes on, if the paragraph before says "another
//!   terminal".
//! - A `text` block is what that prints. `…` stands for anything, alone on a line for any lines.
//! - Any other block is the content of the file that the paragraph before names last.
//! - A numbered list is done in the browser: "click **words**", "enter `text` as **label**", "see **words**", "see
//!   `text` as **label**". A verb holds until the next one.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Commands for the terminal.
    Type(String),
    /// A command that goes on, for a terminal of its own.
    Start(String),
    /// What the commands before print.
    Printed(String),
    /// A file with this content.
    Write(PathBuf, String),
    /// Words to click in the browser.
    Click(String),
    /// A text for the field of a label.
    Enter(Field),
    /// Words that the page shows.
    See(String),
    /// What the field of a label holds.
    Holds(Field),
}

/// A field of a form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its label.
    pub label: String,
    /// What it holds.
    pub text: String,
}

/// The steps of the section with this heading.
pub fn steps(document: &str, heading: &str) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    let mut paragraph = String::new();
    for part in parts(document, heading) {
        match part {
            Part::Paragraph(text) => paragraph = text,
            Part::Block { language, text } => steps.push(step(&language, text, &paragraph)?),
            Part::Item(text) => {
                steps.extend(acts(&text).with_context(|| format!("failed to understand {text:?}"))?);
            }
        }
    }
    ensure!(!steps.is_empty(), "the guide has no section {heading:?} with something to do");
    Ok(steps)
}

/// Whether `printed` is what a guide shows of it.
pub fn is_shown(printed: &str, shown: &str) -> bool {
    let printed: Vec<&str> = printed.lines().map(str::trim_end).collect();
    let shown: Vec<&str> = shown.lines().collect();
    lines_match(&printed, &shown)
}

/// What a section is made of.
enum Part {
    Paragraph(String),
    Block { language: String, text: String },
    Item(String),
}

fn parts(document: &str, heading: &str) -> Vec<Part> {
    let heading = format!("## {heading}");
    let mut lines = document.lines().skip_while(|line| *line != heading).skip(1);
    let mut parts = Vec::new();
    let mut goes_on = false;
    while let Some(line) = lines.next().filter(|line| !line.starts_with("## ")) {
        if let Some(language) = line.strip_prefix("```") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            parts.push(Part::Block { language: language.to_owned(), text: block.join("\n") });
            goes_on = false;
            continue;
        }
        let item = line.split_once(". ").filter(|(number, _)| number.parse::<u8>().is_ok());
        match (item, parts.last_mut()) {
            (Some((_, text)), _) => parts.push(Part::Item(text.to_owned())),
            (None, Some(Part::Paragraph(text) | Part::Item(text))) if goes_on => {
                text.push(' ');
                text.push_str(line.trim());
            }
            (None, _) if !line.is_empty() => parts.push(Part::Paragraph(line.to_owned())),
            (None, _) => {}
        }
        goes_on = !line.is_empty();
    }
    parts
}

/// What to do with a block.
fn step(language: &str, text: String, paragraph: &str) -> Result<Step> {
    Ok(match language {
        "sh" if paragraph.contains("another terminal") => Step::Start(text),
        "sh" => Step::Type(text),
        "text" => Step::Printed(text),
        _ => {
            let file = marked(paragraph).filter_map(|(_, mark)| mark.code()).last();
            let file = file.with_context(|| format!("no file is named before the block\n{text}"))?;
            Step::Write(PathBuf::from(file), format!("{text}\n"))
        }
    })
}

/// What an item of a list says to do in the browser.
fn acts(item: &str) -> Result<Vec<Step>> {
    #[derive(Clone, Copy)]
    enum Verb {
        Click,
        Enter,
        See,
    }
    let (mut acts, mut verb, mut text) = (Vec::new(), None, None);
    for (before, mark) in marked(item) {
        for word in before.split(|letter: char| !letter.is_alphabetic()) {
            verb = match word.to_lowercase().as_str() {
                "click" => Some(Verb::Click),
                "enter" => Some(Verb::Enter),
                "see" => Some(Verb::See),
                _ => verb,
            };
        }
        let Mark::Bold(words) = mark else {
            text = mark.code();
            continue;
        };
        let words = words.to_owned();
        let field = |text: &str| Field { label: words.clone(), text: text.to_owned() };
        acts.push(match (verb, text.take()) {
            (Some(Verb::Click), None) => Step::Click(words),
            (Some(Verb::Enter), Some(text)) => Step::Enter(field(text)),
            (Some(Verb::See), None) => Step::See(words),
            (Some(Verb::See), Some(text)) => Step::Holds(field(text)),
            _ => bail!("what is to be done with {words:?}?"),
        });
    }
    ensure!(!acts.is_empty() && text.is_none(), "there is something that nobody can do");
    Ok(acts)
}

/// Something in a text that is marked.
#[derive(Clone, Copy)]
enum Mark<'a> {
    Code(&'a str),
    Bold(&'a str),
}

impl<'a> Mark<'a> {
    fn code(self) -> Option<&'a str> {
        match self {
            Self::Code(text) => Some(text),
            Self::Bold(_) => None,
        }
    }
}

/// The marks of a text, each with the plain text before it.
fn marked(text: &str) -> impl Iterator<Item = (&str, Mark<'_>)> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (before, found) = rest.split_at_checked(rest.find(['`', '*'])?)?;
        let (mark, after) = match found.strip_prefix("**") {
            Some(bold) => bold.split_once("**").map(|(words, after)| (Mark::Bold(words), after))?,
            None => {
                found.strip_prefix('`')?.split_once('`').map(|(code, after)| (Mark::Code(code), after))?
            }
        };
        rest = after;
        Some((before, mark))
    })
}

fn lines_match(printed: &[&str], shown: &[&str]) -> bool {
    match (printed, shown) {
        ([], []) => true,
        (_, ["…", others @ ..]) => {
            (0..=printed.len()).any(|skipped| lines_match(printed.get(skipped..).unwrap_or_default(), others))
        }
        ([line, lines @ ..], [pattern, others @ ..]) => {
            line_matches(line, pattern) && lines_match(lines, others)
        }
        _ => false,
    }
}

fn line_matches(line: &str, pattern: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('…') else { return line == pattern };
    let Some(mut line) = line.strip_prefix(start) else { return false };
    let mut pieces: Vec<&str> = rest.split('…').collect();
    let end = pieces.pop().unwrap_or_default();
    for piece in pieces {
        let Some((_, after)) = line.split_once(piece) else { return false };
        line = after;
    }
    line.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUIDE: &str = "# Guide\n\n```sh\nnot this\n```\n\n## First\n\nMake it, then write\n`src/main.rs`:\n\n\
        ```rust\nfn main() {}\n```\n\nNow:\n\n```sh\none\ntwo\n```\n\n```text\nout …\n```\n\nIn another terminal:\n\n\
        ```sh\nserve\n```\n\n1. Click **A b**, then\n   **C**.\n2. Enter `x` as **D**, see `y` as **E** and **F**.\n\n\
        ## Second\n\n```sh\nnor this\n```\n";

    #[test]
    fn a_section_is_read_as_people_read_it() {
        let text = str::to_owned;
        let field = |label: &str, it: &str| Field { label: text(label), text: text(it) };
        let expected = [
            Step::Write("src/main.rs".into(), text("fn main() {}\n")),
            Step::Type(text("one\ntwo")),
            Step::Printed(text("out …")),
            Step::Start(text("serve")),
            Step::Click(text("A b")),
            Step::Click(text("C")),
            Step::Enter(field("D", "x")),
            Step::Holds(field("E", "y")),
            Step::See(text("F")),
        ];
        assert_eq!(steps(GUIDE, "First").unwrap(), expected);
    }

    #[test]
    fn what_cannot_be_followed_is_an_error() {
        for section in [
            "",
            "Nothing to do.",
            "```rust\nfn main() {}\n```",
            "1. Look around.",
            "1. Look at **it**.",
            "1. Enter **it**.",
            "1. Click `this`.",
        ] {
            assert!(steps(&format!("## First\n\n{section}\n"), "First").is_err(), "{section}");
        }
    }

    #[test]
    fn an_ellipsis_stands_for_anything() {
        for (printed, shown) in [
            ("a\nb", "a\nb"),
            ("a  \n", "a"),
            ("12:00 INFO x\n", "… INFO x"),
            ("a1b2c", "a…b…c"),
            ("a\nb\nc\nd", "a\n…\nd"),
            ("a", "…\na\n…"),
        ] {
            assert!(is_shown(printed, shown), "{printed:?} as {shown:?}");
        }
        for (printed, shown) in
            [("a\nb", "a"), ("a", "a\nb"), ("ab", "a"), ("ab", "…a"), ("b\na", "a\n…"), ("", "a")]
        {
            assert!(!is_shown(printed, shown), "{printed:?} as {shown:?}");
        }
    }
}
