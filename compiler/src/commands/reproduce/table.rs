//! A figure of a publication beside ours: cells with tolerances, as text and as JSON.

use serde_json::{Value, json};
use std::fmt::Write;

/// How far a cell may be from the published value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// Printed only.
    Reported,
    /// A share of the published value.
    Share(f64),
    /// A share of the published value, or this much in the figure's unit if that is more.
    ShareOr(f64, f64),
    /// So much in the figure's unit.
    Within(f64),
}

/// One number.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Row: the network.
    pub row: String,
    /// Column: the series.
    pub column: String,
    /// Published.
    pub theirs: f64,
    /// Computed.
    pub ours: f64,
    /// The bar.
    pub tolerance: Tolerance,
}

impl Cell {
    /// Ours less theirs, in the figure's unit.
    pub fn difference(&self) -> f64 {
        self.ours - self.theirs
    }

    /// Whether the cell keeps its tolerance.
    pub fn holds(&self) -> bool {
        let off = self.difference().abs();
        let allowed = match self.tolerance {
            Tolerance::Reported => return true,
            Tolerance::Share(s) => s * self.theirs.abs(),
            Tolerance::ShareOr(s, least) => (s * self.theirs.abs()).max(least),
            Tolerance::Within(d) => d,
        };
        // The published values have two or three digits; the sum of two of them in binary
        // must not fail a cell by its last bit.
        off <= allowed + 1e-9
    }
}

/// A figure or table.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Short name, also of the picture's file: `fig11-maximum`.
    pub id: &'static str,
    /// What it shows.
    pub title: String,
    /// Unit of the cells; empty for ratios.
    pub unit: &'static str,
    /// Digits after the point.
    pub digits: usize,
    /// The cells, row by row.
    pub cells: Vec<Cell>,
    /// Where deviations come from.
    pub notes: Vec<&'static str>,
}

impl Figure {
    /// An empty figure.
    pub fn new(id: &'static str, title: impl Into<String>, unit: &'static str, digits: usize) -> Self {
        Self { id, title: title.into(), unit, digits, cells: Vec::new(), notes: Vec::new() }
    }

    /// Adds a cell.
    pub fn cell(&mut self, row: &str, column: &str, theirs: f64, ours: f64, tolerance: Tolerance) {
        let (row, column) = (row.to_owned(), column.to_owned());
        self.cells.push(Cell { row, column, theirs, ours, tolerance });
    }

    /// Cells outside their tolerance.
    pub fn failures(&self) -> impl Iterator<Item = &Cell> {
        self.cells.iter().filter(|c| !c.holds())
    }

    /// Deviation of a cell: of ratios the difference, else per cent.
    fn deviation(&self, c: &Cell) -> String {
        if self.unit.is_empty() || self.unit == "%" {
            format!("{:+.*}", self.digits, c.difference())
        } else {
            format!("{:+.1} %", 100.0 * c.difference() / c.theirs)
        }
    }

    fn bar(&self, c: &Cell) -> String {
        match c.tolerance {
            Tolerance::Reported => "reported".to_owned(),
            Tolerance::Share(s) => format!("{:.0} %", 100.0 * s),
            Tolerance::ShareOr(s, least) => format!("{:.0} % or {least} {}", 100.0 * s, self.unit),
            Tolerance::Within(d) if self.unit == "%" => format!("{d} points"),
            Tolerance::Within(d) => format!("{d} {}", self.unit).trim_end().to_owned(),
        }
    }

    /// The table for people.
    pub fn text(&self) -> String {
        let unit = if self.unit.is_empty() { String::new() } else { format!(" ({})", self.unit) };
        let mut t = format!("{}{unit}\n", self.title);
        let _ = writeln!(
            t,
            "  {:<14}{:<13}{:>10}{:>10}{:>11}  tolerance",
            "network", "series", "published", "ours", "deviation"
        );
        let mut last = "";
        for c in &self.cells {
            let row = if c.row == last { "" } else { &c.row };
            last = &c.row;
            let verdict = if c.holds() { "" } else { "  OUTSIDE" };
            let _ = writeln!(
                t,
                "  {row:<14}{:<13}{:>10.*}{:>10.*}{:>11}  {}{verdict}",
                c.column,
                self.digits,
                c.theirs,
                self.digits,
                c.ours,
                self.deviation(c),
                self.bar(c)
            );
        }
        for note in &self.notes {
            let _ = writeln!(t, "  - {note}");
        }
        t
    }

    /// The object of `--json`.
    pub fn json(&self) -> Value {
        json!({
            "id": self.id,
            "title": self.title,
            "unit": self.unit,
            "notes": self.notes,
            "cells": self.cells.iter().map(|c| json!({
                "network": c.row,
                "series": c.column,
                "published": c.theirs,
                "ours": c.ours,
                "tolerance": self.bar(c),
                "reported_only": c.tolerance == Tolerance::Reported,
                "holds": c.holds(),
            })).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(theirs: f64, ours: f64, tolerance: Tolerance) -> Cell {
        Cell { row: String::new(), column: String::new(), theirs, ours, tolerance }
    }

    #[test]
    fn tolerances_hold_up_to_their_edge_and_no_further() {
        assert!(cell(0.95, 1.00, Tolerance::Within(0.05)).holds());
        assert!(!cell(0.95, 1.01, Tolerance::Within(0.05)).holds());
        assert!(cell(100.0, 80.0, Tolerance::Share(0.2)).holds());
        assert!(!cell(100.0, 79.0, Tolerance::Share(0.2)).holds());
        assert!(cell(157.0, 165.0, Tolerance::ShareOr(0.01, 28.0)).holds());
        assert!(cell(16119.0, 16240.0, Tolerance::ShareOr(0.01, 28.0)).holds());
        assert!(!cell(157.0, 186.0, Tolerance::ShareOr(0.01, 28.0)).holds());
        assert!(cell(1.0, 9.0, Tolerance::Reported).holds());
    }

    #[test]
    fn the_table_marks_what_is_outside() {
        let mut figure = Figure::new("f", "Figure", "MiB", 0);
        figure.cell("A", "all", 100.0, 101.0, Tolerance::Share(0.01));
        figure.cell("A", "conv", 100.0, 103.0, Tolerance::Share(0.01));
        let text = figure.text();
        assert_eq!(text.matches("OUTSIDE").count(), 1);
        assert_eq!(text.matches("  A ").count(), 1, "the row's name is written once:\n{text}");
        assert_eq!(figure.failures().count(), 1);
        assert_eq!(figure.json()["cells"][1]["holds"], false);
    }
}
