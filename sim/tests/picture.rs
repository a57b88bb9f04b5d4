//! The picture of a run.

use serde_json::Value;
use sim::picture::Picture;
use sim::scenario::Scenario;
use sim::swarm;
use sim::trace::Trace;
use sim::variant::Variant;
use sim::world::World;

#[test]
fn it_is_one_page_with_a_lane_for_everybody() {
    for seed in [3, 4, 9] {
        let scenario = swarm::scenario(seed);
        let page = draw(&scenario, None);
        for instance in &scenario.instances {
            let lane = format!("data-lane=\"i{}\"", instance.id);
            assert_eq!(page.matches(&lane).count(), 1, "{seed}: {lane}");
        }
        for lane in ["faults", "store", "phones"] {
            assert_eq!(page.matches(&format!("data-lane=\"{lane}\"")).count(), 1, "{seed}: {lane}");
        }
        assert!(!page.contains("{{"), "{seed}: something is not filled in");
        // The only address is the name of SVG, which nobody fetches.
        let addresses = page.matches("://").count();
        assert_eq!(addresses, page.matches("http://www.w3.org/2000/svg").count(), "{seed}");
        assert!(!page.contains("<link") && !page.contains("src="));
        for secret in ["account_sim_", "@s.whatsapp.net", "@g.us", "+4071"] {
            assert!(!page.contains(secret), "{seed}: {secret}");
        }
    }
}

#[test]
fn its_markup_is_well_formed() {
    let page = draw(&swarm::scenario(2), Variant::named("passive-gate-missing"));
    let (markup, _) = page.split_once("<script type=\"application/json\"").unwrap();
    let (before, after) = markup.split_once("<style>").unwrap();
    let (_, after) = after.split_once("</style>").unwrap();
    let mut open: Vec<&str> = Vec::new();
    for part in [before, after] {
        let mut rest = part;
        while let Some(start) = rest.find('<') {
            let end = start + rest[start..].find('>').expect("a tag ends");
            let tag = &rest[start + 1..end];
            rest = &rest[end + 1..];
            let name = tag.trim_start_matches('/').split([' ', '\n']).next().unwrap();
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "closed where it is not open");
            } else if !tag.starts_with('!') && !["input", "meta"].contains(&name) {
                open.push(name);
            }
        }
    }
    assert_eq!(open, ["html", "body"]);
    assert!(page.trim_end().ends_with("</script>\n</body>\n</html>"));
}

#[test]
fn its_data_say_who_owned_what_and_what_went_wrong() {
    let scenario = swarm::scenario(3);
    let data = data(&draw(&scenario, None));
    let instances = data["instances"].as_array().unwrap();
    assert_eq!(instances.len(), scenario.instances.len());
    let end = data["end"].as_u64().unwrap();
    let mut held = 0;
    for (lane, plan) in instances.iter().zip(&scenario.instances) {
        // Modes follow each other without a gap, from the beginning to the end.
        let mut at = 0;
        for mode in lane["modes"].as_array().unwrap() {
            assert_eq!(mode["from"].as_u64(), Some(at), "instance {}", plan.id);
            at = mode["to"].as_u64().unwrap();
        }
        assert_eq!(at, end, "instance {}", plan.id);
        for hold in lane["holds"].as_array().unwrap() {
            assert!(hold["from"].as_u64() <= hold["to"].as_u64());
            assert!(hold["to"].as_u64().unwrap() <= end);
            assert!(hold["epoch"].as_u64().unwrap() >= 1);
            held += u32::from(hold["account"].is_u64());
        }
    }
    assert!(held >= scenario.accounts.len() as u32);
    assert!(data["owners"].as_array().unwrap().len() >= scenario.accounts.len());
    let faults = data["faults"].as_array().unwrap();
    assert_eq!(faults.len(), scenario.faults.len() + usize::from(scenario.node.is_some()));
    let texts = data["texts"].as_array().unwrap().len() as u64;
    for mark in data["marks"].as_array().unwrap() {
        assert!(mark["text"].as_u64().unwrap() < texts);
    }
}

#[test]
fn what_is_wrong_is_said_first_and_marked() {
    let variant = Variant::named("fresh-id-per-attempt");
    let shown = (0..100).find_map(|seed| {
        let page = draw(&swarm::scenario(seed), variant);
        let flags = data(&page)["violations"].as_array().unwrap().clone();
        let place = flags.iter().take(12).position(|flag| flag["check"] == "S13")?;
        Some((page, flags[place].clone(), place))
    });
    let (page, flag, place) = shown.expect("a world in which the bug shows");
    assert!(page.contains("A rule is broken on purpose: <b>fresh-id-per-attempt</b>"));
    assert!(page.contains(&format!("data-violation=\"{place}\">S13 ")), "no button");
    assert!(flag["at"].is_u64());
}

fn draw(scenario: &Scenario, variant: Option<Variant>) -> String {
    let world = World::new(scenario.clone(), Trace::recording()).unwrap();
    let (report, trace) = world.breaking(variant).run();
    Picture::new(scenario, variant, &report, &trace).to_html()
}

fn data(page: &str) -> Value {
    let (_, after) = page.split_once("id=\"data\">").unwrap();
    let (json, _) = after.split_once("</script>").unwrap();
    serde_json::from_str(json).unwrap()
}
