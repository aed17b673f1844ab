//! Finds `{{ name }}` in text. Names hold letters, digits and `_ . - [ ] $`.

/// What a placeholder's name refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A job variable or context value.
    Standard,
    /// A block document of the server.
    Block,
    /// A variable of the server.
    Variable,
    /// An environment variable of whoever resolves.
    Environment,
}

const BLOCKS: &str = "prefect.blocks.";
const VARIABLES: &str = "prefect.variables.";

/// One placeholder in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placeholder<'a> {
    /// With its braces, as written.
    pub full: &'a str,
    /// Between the braces, without white space.
    pub name: &'a str,
}

impl<'a> Placeholder<'a> {
    /// What the name refers to.
    pub fn kind(self) -> Kind {
        if self.name.starts_with(BLOCKS) {
            Kind::Block
        } else if self.name.starts_with(VARIABLES) {
            Kind::Variable
        } else if self.name.starts_with('$') {
            Kind::Environment
        } else {
            Kind::Standard
        }
    }

    /// The name without the prefix of its kind.
    pub fn key(self) -> &'a str {
        match self.kind() {
            Kind::Standard => self.name,
            Kind::Block => self.name.strip_prefix(BLOCKS).unwrap_or(self.name),
            Kind::Variable => self.name.strip_prefix(VARIABLES).unwrap_or(self.name),
            Kind::Environment => self.name.trim_start_matches('$'),
        }
    }
}

/// A stretch of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Text that holds no placeholder.
    Text(&'a str),
    /// A placeholder.
    Placeholder(Placeholder<'a>),
}

/// Cuts `text` into pieces; concatenated they are `text` again.
pub fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut found = Vec::new();
    let mut rest = text;
    let mut searched = 0;
    while let Some(offset) = rest.get(searched..).and_then(|tail| tail.find("{{")) {
        let start = searched + offset;
        let Some((before, from_brace)) = rest.split_at_checked(start) else { break };
        if let Some(placeholder) = parse(from_brace) {
            if !before.is_empty() {
                found.push(Piece::Text(before));
            }
            found.push(Piece::Placeholder(placeholder));
            rest = from_brace.strip_prefix(placeholder.full).unwrap_or_default();
            searched = 0;
        } else {
            searched = start + 1;
        }
    }
    if !rest.is_empty() {
        found.push(Piece::Text(rest));
    }
    found
}

/// The placeholder that `text` consists of, if it is exactly one.
pub(super) fn whole(text: &str) -> Option<Placeholder<'_>> {
    parse(text).filter(|placeholder| placeholder.full == text)
}

/// The placeholders of a text, in order.
pub(super) fn placeholders(text: &str) -> impl Iterator<Item = Placeholder<'_>> {
    pieces(text).into_iter().filter_map(|piece| match piece {
        Piece::Placeholder(placeholder) => Some(placeholder),
        Piece::Text(_) => None,
    })
}

/// Reads one placeholder at the very start of `text`.
fn parse(text: &str) -> Option<Placeholder<'_>> {
    let inner = text.strip_prefix("{{")?.trim_start();
    let end = inner.find(|c: char| !is_name(c)).unwrap_or(inner.len());
    let (name, tail) = inner.split_at_checked(end)?;
    let rest = tail.trim_start().strip_prefix("}}")?;
    let full = text.get(..text.len() - rest.len())?;
    (!name.is_empty()).then_some(Placeholder { full, name })
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '[' | ']' | '$')
}
