//! One self-contained page: summary, timeline, live memory, memory map.

use crate::driver::Compiled;
use crate::report::{Request, table};
use crate::svg;

/// The page of `--report`.
pub fn page(request: &Request<'_>, compiled: &Compiled) -> String {
    let s = &compiled.summary;
    let text = table(request, s).replace('&', "&amp;").replace('<', "&lt;");
    let trace = &compiled.sim.trace;
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>vdnnc: {title}</title>\n\
         <style>body{{font-family:sans-serif;margin:2em auto;max-width:1150px;color:#222}}\
         pre{{background:#f4f4f4;padding:1em;overflow-x:auto}}h2{{margin-top:1.6em}}</style></head><body>\n\
         <h1>{title}</h1>\n<pre>{text}</pre>\n\
         <h2>Timeline of one step</h2>\n<p>Blue kernels, orange copies, red compute waiting; hover for names.</p>\n{timeline}\
         <h2>Live device memory</h2>\n{live}\
         <h2>Memory map</h2>\n<p>Each box is a buffer: address upwards, time to the right.</p>\n{map}\
         </body></html>\n",
        title = compiled.plan.header.model_name.replace('<', "&lt;"),
        timeline = svg::timeline(&compiled.plan, trace, s.step),
        live = svg::live_memory(trace, s.step, s.peak, s.lower_bound),
        map = svg::memory_map(&compiled.plan, trace, s.step),
    )
}
