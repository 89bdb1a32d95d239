//! Tests.
use super::testnet::*;
use crate::elide::{ElideOptions, elide};
use crate::{Policy, SyncMode};
use std::time::Instant;

#[test]
#[ignore]
fn probe() {
    let nets: Vec<(&str, vdnn_ir::Graph)> = vec![
        ("vgg16", vgg(256, 224, &[(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)])),
        ("resnet50", resnet(256, 224, &[3, 4, 6, 3])),
        ("resnet152", resnet(256, 224, &[3, 8, 36, 3])),
        ("densenet121", densenet(256, 224, &[6, 12, 24, 16])),
        ("densenet201", densenet(256, 224, &[6, 12, 48, 32])),
        ("inception", inception(256, 224, 9)),
    ];
    for (name, g) in nets {
        for fastest in [false, true] {
            let t = Instant::now();
            let sel = selected(g.clone(), true, fastest);
            let t_sel = t.elapsed();
            for policy in [Policy::None, Policy::Baseline, Policy::All, Policy::Conv] {
                for sync in [SyncMode::Event, SyncMode::Layer] {
                    if sync == SyncMode::Layer && matches!(policy, Policy::None | Policy::Baseline) {
                        continue;
                    }
                    let t = Instant::now();
                    let s = scheduled(sel.clone(), policy, sync);
                    let t0 = t.elapsed();
                    let t = Instant::now();
                    let l = s.layout(policy);
                    let t1 = t.elapsed();
                    let t = Instant::now();
                    let mut p = s.plan(&l);
                    let t2 = t.elapsed();
                    let t = Instant::now();
                    let e = elide(&mut p, &ElideOptions::default());
                    let t3 = t.elapsed();
                    let t = Instant::now();
                    if let Ok(dir) = std::env::var("DUMP") {
                        let mut text = String::new();
                        for st in l.storages.values() {
                            if st.space == vdnn_ir::Space::Device
                                && st.kind != crate::memory::StorageKind::Persistent
                            {
                                let what = st.values.first().map_or("ws".to_string(), |&v| {
                                    crate::memory::storage::describe(&s.graph, v)
                                });
                                text += &format!(
                                    "{} {} {} {}\n",
                                    st.bytes.align_up(256).0,
                                    st.live.start,
                                    st.live.end,
                                    what
                                );
                            }
                        }
                        std::fs::write(format!("{dir}/{name}-{fastest}-{policy}-{sync}.txt"), text).unwrap();
                    }
                    let ok = vdnn_plan::check::check(&p);
                    let t4 = t.elapsed();
                    eprintln!(
                        "{name:12} {:5} {policy:8} {sync:5} n={:5} st={:5} arena={:9.1} lb={:9.1} r={:.4} pers={:.0} host={:.0}/{:.0} off={:?} | sel {t_sel:?} sched {t0:?} layout {t1:?} lower {t2:?} elide {t3:?} check {t4:?} {e:?} {}",
                        if fastest { "perf" } else { "mem" },
                        s.graph.order().len(),
                        l.storages.len(),
                        l.device_bytes.mib(),
                        l.lower_bound.mib(),
                        l.device_bytes.as_f64() / l.lower_bound.as_f64(),
                        l.persistent_bytes.mib(),
                        l.host_bytes.mib(),
                        l.host_lower_bound.mib(),
                        s.offload,
                        match ok {
                            Ok(_) => "OK".to_string(),
                            Err(e) => format!("{e}").chars().take(300).collect(),
                        },
                    );
                }
            }
        }
    }
}
