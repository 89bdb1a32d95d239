//! The text form of tile programs: a header, the sizes of the operands, a line per buffer, a
//! line per instruction. Records are RON. It parses back to the same program.

use crate::chain::Shape;
use crate::program::{Buffer, Instruction, Program};
use std::fmt;
use std::str::FromStr;
use vdnn_ir::{Bytes, Precision};

/// Why text is not a program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong.
    pub why: String,
}

fn ron_options() -> ron::Options {
    ron::Options::default()
        .with_default_extension(ron::extensions::Extensions::UNWRAP_VARIANT_NEWTYPES)
        .with_default_extension(ron::extensions::Extensions::IMPLICIT_SOME)
        .with_recursion_limit(32)
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [gy, gx] = self.grid;
        writeln!(
            f,
            "tile-program {} input {} output {} grid {gy}x{gx} steps {}..{} shared {} accumulators {}",
            self.precision,
            self.input,
            self.output,
            self.steps.start,
            self.steps.end,
            self.shared.0,
            self.accumulators.0
        )?;
        let operands: Vec<String> = self.operands.iter().map(u64::to_string).collect();
        writeln!(f, "operands {}", operands.join(" "))?;
        for (i, buffer) in self.buffers.iter().enumerate() {
            writeln!(f, "b{i} = {}", ron_options().to_string(buffer).map_err(|_| fmt::Error)?)?;
        }
        for instruction in &self.body {
            writeln!(f, "  {instruction}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&ron_options().to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for Program {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
        let (at, header) = lines.next().ok_or(ParseError { line: 1, why: "nothing there".to_owned() })?;
        let mut program = parse_header(header).map_err(|why| ParseError { line: at + 1, why })?;
        for (at, line) in lines {
            parse_line(&mut program, line.trim()).map_err(|why| ParseError { line: at + 1, why })?;
        }
        Ok(program)
    }
}

fn parse_header(line: &str) -> Result<Program, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let &[
        "tile-program",
        precision,
        "input",
        input,
        "output",
        output,
        "grid",
        grid,
        "steps",
        steps,
        "shared",
        shared,
        "accumulators",
        accumulators,
    ] = words.as_slice()
    else {
        return Err(
            "expected `tile-program PRECISION input CxHxW output CxHxW grid YxX steps A..B shared N \
                    accumulators N`"
                .to_owned(),
        );
    };
    let (first, end) = steps.split_once("..").ok_or("expected steps A..B")?;
    let [gy, gx] = numbers(grid)?;
    Ok(Program {
        precision: precision.parse::<Precision>()?,
        input: shape(input)?,
        output: shape(output)?,
        operands: Vec::new(),
        grid: [gy, gx],
        steps: number(first)?..number(end)?,
        shared: Bytes(number(shared)?),
        accumulators: Bytes(number(accumulators)?),
        buffers: Vec::new(),
        body: Vec::new(),
    })
}

fn parse_line(program: &mut Program, line: &str) -> Result<(), String> {
    if let Some(list) = line.strip_prefix("operands ") {
        program.operands = list.split_whitespace().map(number).collect::<Result<_, _>>()?;
        return Ok(());
    }
    if let Some((name, record)) = line.split_once(" = ") {
        if name != format!("b{}", program.buffers.len()) {
            return Err(format!("expected buffer b{}, found `{name}`", program.buffers.len()));
        }
        let buffer: Buffer = ron_options().from_str(record).map_err(|e| format!("not a buffer: {e}"))?;
        program.buffers.push(buffer);
        return Ok(());
    }
    let instruction = ron_options().from_str(line).map_err(|e| format!("not an instruction: {e}"))?;
    program.body.push(instruction);
    Ok(())
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is not a number that fits here"))
}

fn numbers<const N: usize>(text: &str) -> Result<[u64; N], String> {
    let list: Vec<u64> = text.split('x').map(number).collect::<Result<_, _>>()?;
    list.try_into().map_err(|_| format!("`{text}` is not {N} numbers"))
}

fn shape(text: &str) -> Result<Shape, String> {
    let [channels, height, width] = numbers(text)?;
    Ok(Shape { channels, height, width })
}
