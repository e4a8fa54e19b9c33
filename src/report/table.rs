//! Lines of a table, each made without the others.
//!
//! Every column but the last has a least width, and a longer cell moves the rest of its line. So a list of any length
//! can be written while it is read: no line has to wait for the widths of those that follow.

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};

/// A column with its least width in characters.
#[derive(Clone, Copy, Debug)]
pub enum Column {
    /// Its cells begin at the left.
    Left(u16),
    /// Its cells end at the right, as numbers do.
    Right(u16),
}

/// One line: the cells of the columns, then a text of any length.
pub fn line<const N: usize>(columns: [Column; N], cells: [&str; N], text: &str) -> String {
    line_of(&columns, &cells, text)
}

/// The same with a number of columns that is known only when it runs. Each has a cell.
pub fn line_of(columns: &[Column], cells: &[&str], text: &str) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .add_row(cells.to_vec());
    for (column, rule) in table.column_iter_mut().zip(columns.iter().copied()) {
        let (width, alignment) = match rule {
            Column::Left(width) => (width, CellAlignment::Left),
            Column::Right(width) => (width, CellAlignment::Right),
        };
        // One blank between two cells, which is part of the width.
        column.set_padding((0, 1)).set_cell_alignment(alignment);
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width + 1)));
    }
    // The text is not a cell: the crate counts widths in 16 bits, and a command may have 120 KiB.
    format!("{table}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_that_is_too_long_moves_the_rest_of_its_line() {
        let columns = [Column::Left(4), Column::Right(3)];
        assert_eq!(line(columns, ["a", "7"], "text"), "a      7 text");
        assert_eq!(line(columns, ["abcdef", "12345"], "text"), "abcdef 12345 text");
        assert_eq!(line(columns, ["", ""], ""), "         ");
    }

    #[test]
    fn a_wide_character_takes_two_columns() {
        assert_eq!(line([Column::Left(4)], ["日本"], "x"), "日本 x");
    }

    #[test]
    fn a_text_may_have_any_length() {
        let text = "x".repeat(120 * 1024);
        assert_eq!(line([Column::Left(1)], ["a"], &text), format!("a {text}"));
    }
}
