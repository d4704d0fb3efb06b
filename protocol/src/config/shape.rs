//! A look at a text's tokens before it is parsed, so that nothing hostile reaches the parser's recursion.

use toml_parser::Source;
use toml_parser::lexer::TokenKind;

use super::problem::Problem;
use crate::snapshot::MAX_TEXT;

/// Bounds the nesting of brackets: a config needs two, and a newer one may need a few more.
const MAX_BRACKET_DEPTH: usize = 8;
/// Bounds the parts of a dotted key: a config needs five (`machine.web01.command.restart.username`).
///
/// Parsed tables nest as deep as the product of both limits, and dropping them recurses: with the parser's own limits
/// (80 and 80) that overflows the stack of a thread.
const MAX_KEY_DOTS: usize = 8;

/// Refuses a text that is too large, too deeply nested, or has characters that nobody sees.
pub(super) fn check(text: &str) -> Result<(), Problem> {
    if text.len() > MAX_TEXT {
        let message = format!("the config has {} bytes; at most {MAX_TEXT} are allowed", text.len());
        return Err(Problem { line: 1, column: 1, message, hint: None });
    }
    if let Some((at, c)) = text.char_indices().find(|(_, c)| invisible(*c)) {
        let message =
            format!("the character U+{:04X} is invisible, and not allowed anywhere in the config", u32::from(c));
        return Err(Problem::at(text, at, message, Some("delete it, or write it as an escape in a string".into())));
    }
    nesting(text)
}

/// Tells whether a reader might see another config than malai: by control characters, and those that reorder the text
/// around them.
fn invisible(c: char) -> bool {
    (c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn nesting(text: &str) -> Result<(), Problem> {
    let (mut depth, mut dots) = (0usize, 0usize);
    for token in Source::new(text).lex() {
        match token.kind() {
            TokenKind::LeftSquareBracket | TokenKind::LeftCurlyBracket => {
                depth += 1;
                dots = 0;
            }
            TokenKind::RightSquareBracket | TokenKind::RightCurlyBracket => {
                depth = depth.saturating_sub(1);
                dots = 0;
            }
            TokenKind::Dot => dots += 1,
            TokenKind::Equals | TokenKind::Comma | TokenKind::Newline => dots = 0,
            _ => {}
        }
        if depth > MAX_BRACKET_DEPTH || dots > MAX_KEY_DOTS {
            let message = "nested too deeply for a config".to_owned();
            return Err(Problem::at(text, token.span().start(), message, None));
        }
    }
    Ok(())
}
