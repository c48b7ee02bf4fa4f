//! The language, case by case; and that nothing it is given can break it.
#![allow(missing_docs)]

use mycelium_cel::{Bindings, Declared, Limits, Program, Value, check};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

fn schema() -> Json {
    json!({"type": "object", "properties": {
        "n": {"type": "integer"}, "d": {"type": "number"}, "s": {"type": "string", "maxLength": 10},
        "list": {"type": "array", "maxItems": 5, "items": {"type": "string", "maxLength": 5}},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "integer"}},
        "map": {"type": "object", "additionalProperties": {"type": "integer"}},
        "when": {"type": "string", "format": "date-time"}, "a-b": {"type": "string"}, "open": {"type": "array", "items": {"type": "string"}},
        "either": {"x-kubernetes-int-or-string": true}}})
}

fn object() -> Json {
    json!({"n": 3, "d": 3, "s": "hello", "list": ["a", "b"], "set": [1, 2], "map": {"x": 1, "y": 2},
        "when": "2024-02-29T12:30:00Z", "a-b": "dash", "either": "50%"})
}

fn run(text: &str) -> Result<Json, String> {
    let (object, schema) = (object(), schema());
    let program = Program::parse(text).map_err(|error| error.to_string())?;
    let mut bindings = Bindings::default();
    bindings.set("self", Value::json(&object, Some(&schema)));
    program.run(&bindings, &Limits::new(1_000_000, 1_000_000)).map(|value| value.to_json()).map_err(|e| e.to_string())
}

#[test]
fn expressions_have_their_values() {
    for (text, wanted) in [
        ("1 + 2 * 3 - 4 / 2", json!(5)),
        ("-(7 % 4) == -3 && !false", json!(true)),
        ("self.n > 2 ? 'big' : 'small'", json!("big")),
        ("self.n == 3.0 && self.d == 3 && self.d / 2.0 == 1.5", json!(true)),
        ("has(self.s) && !has(self.none)", json!(true)),
        ("self.list.all(x, size(x) == 1) && self.list.exists(x, x == 'b')", json!(true)),
        ("self.list.exists_one(x, x == 'a')", json!(true)),
        ("self.list.map(x, x + x).join('-')", json!("aa-bb")),
        ("self.list.filter(x, x != 'a')", json!(["b"])),
        ("self.map.all(k, self.map[k] > 0)", json!(true)),
        ("'x' in self.map && 'a' in self.list && !('z' in self.list)", json!(true)),
        ("self.set == [2, 1]", json!(true)),
        ("self.when.getFullYear() == 2024 && self.when < timestamp('2025-01-01T00:00:00Z')", json!(true)),
        ("duration('1h30m') == duration('90m') && duration('90s').getMinutes() == 1", json!(true)),
        ("self.a__dash__b", json!("dash")),
        ("self.s.matches('^h.*o$') && self.s.startsWith('he') && self.s.contains('ll')", json!(true)),
        ("'a,b,c'.split(',')[1] + 'xyz'.substring(1, 2) + 'ABC'.lowerAscii()", json!("byabc")),
        ("type(self.either) == string ? self.either.endsWith('%') : self.either > 1", json!(true)),
        ("'%s has %d of %.2f'.format(['a', 2, 1.5])", json!("a has 2 of 1.50")),
        (
            "quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('100m').add(quantity('0.9')).asInteger() == 1",
            json!(true),
        ),
        ("url('https://h:8080/p?q=1').getPort() == '8080' && isURL('https://x/y')", json!(true)),
        ("ip('10.1.2.3').family() == 4 && cidr('10.0.0.0/8').containsIP('10.1.2.3')", json!(true)),
        ("semver('1.2.3').isLessThan(semver('1.10.0'))", json!(true)),
        (
            "!format.dns1123Label().validate('ok').hasValue() && format.named('dns1123Label').value().validate('No_').hasValue()",
            json!(true),
        ),
        ("[3, 1, 2].max() == 3 && [1, 2].isSorted() && [1, 2].sum() == 3 && [5, 6].indexOf(6) == 1", json!(true)),
        ("sets.contains([1, 2], [2]) && sets.intersects([1], [1, 2])", json!(true)),
        (
            "self.?none.orValue(7) == 7 && self.?s.hasValue() && self.?s.optMap(x, x + '!').value() == 'hello!'",
            json!(true),
        ),
        ("{'a': 1, 'b': [1, 2]}.b[1]", json!(2)),
        ("r'a\\b' + \"\\u0041\\n\" + '''x'''", json!("a\\bA\nx")),
        ("false && (1 / 0 == 1) || true", json!(true)),
        ("(1 / 0 == 1) || true", json!(true)),
        ("0x1F == 31 && 5u == 5 && 1e3 == 1000.0", json!(true)),
        ("self.list.transformList(i, x, x + string(i))", json!(["a0", "b1"])),
        ("'abc'.find('[bc]+') + string('abcab'.findAll('ab').size())", json!("bc2")),
    ] {
        assert_eq!(run(text), Ok(wanted), "{text}");
    }
}

#[test]
fn failures_say_why() {
    for (text, wanted) in [
        ("self.none", "no such key: none"),
        ("self.list[9]", "index out of bounds: 9"),
        ("1 / 0", "division by zero"),
        ("9223372036854775807 + 1", "integer overflow"),
        ("1 + 'a'", "no such overload"),
        ("self.list.all(x, self.list.all(y, ", "Syntax error"),
        ("a b", "Syntax error: mismatched input 'b' expecting <EOF>"),
    ] {
        let failure = run(text).expect_err(text);
        assert!(failure.contains(wanted), "{text}: {failure}");
    }
    let faults = Program::parse("1 +").expect_err("no operand").to_string();
    assert!(faults.starts_with("ERROR: <input>:1:4: Syntax error"), "{faults}");
    assert!(faults.ends_with("\n | 1 +\n | ...^"), "{faults}");
}

#[test]
fn checks_know_names_fields_types_and_costs() {
    let schema = schema();
    let declared = Declared { names: [("self".to_owned(), Some(&schema))].into(), variables: vec!["v".into()] };
    let checked = |text: &str| check(&Program::parse(text).expect("parses"), &declared);
    for (text, wanted) in [
        ("self.none == 1", "undefined field 'none'"),
        ("other == 1", "undeclared reference to 'other' (in container '')"),
        ("self.n == 'a'", "found no matching overload for '_==_' applied to '(int, string)'"),
        ("self.n && true", "found no matching overload for '_&&_' applied to '(int, bool)'"),
        ("self.s.nonsense()", "undeclared reference to 'nonsense'"),
        ("variables.w", "undefined field 'w'"),
    ] {
        let fault = checked(text).expect_err(text).to_string();
        assert!(fault.contains(wanted), "{text}: {fault}");
    }
    for text in ["self.either == 'a'", "self.map['x'] > 1", "variables.v == 2", "self.a__dash__b == ''"] {
        assert!(checked(text).is_ok(), "{text}");
    }
    assert_eq!(checked("self.n").expect("checks").type_name, "int");
    let bounded = checked("self.list.all(x, self.list.all(y, x == y))").expect("checks").cost;
    let open = checked("self.open.all(x, self.open.all(y, x == y))").expect("checks").cost;
    assert!(bounded < 1_000 && open > 1_000_000_000, "{bounded} {open}");
}

#[test]
fn cost_ends_what_would_run_on() {
    let numbers: Json = (0..2000).collect();
    let mut bindings = Bindings::default();
    bindings.set("n", Value::json(&numbers, None));
    let program = Program::parse("n.all(a, n.all(b, n.all(c, a + b + c >= 0)))").expect("parses");
    let limits = Limits::new(10_000_000, 1_000_000);
    for _ in 0..10 {
        let ended = program.run(&bindings, &limits).expect_err("too costly").to_string();
        assert!(ended.contains("cost"), "{ended}");
    }
    let out = program.run(&bindings, &limits).expect_err("nothing left").to_string();
    assert!(out.contains("running out of cost budget"), "{out}");
}

fn expressions() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("self".to_owned()),
        Just("self.n".to_owned()),
        Just("self.list".to_owned()),
        Just("self.map".to_owned()),
        Just("1".to_owned()),
        Just("-9223372036854775808".to_owned()),
        Just("2.5".to_owned()),
        Just("'é'".to_owned()),
        Just("[]".to_owned()),
        Just("{}".to_owned()),
        Just("null".to_owned()),
        Just("x".to_owned()),
    ];
    leaf.prop_recursive(5, 40, 3, |inner| {
        let operator = prop::sample::select(vec!["+", "-", "*", "/", "%", "==", "<", "in", "&&", "||"]);
        let method = prop::sample::select(vec![
            "size",
            "contains",
            "split",
            "substring",
            "indexOf",
            "replace",
            "matches",
            "join",
            "format",
            "sum",
            "charAt",
            "getHours",
            "value",
        ]);
        prop_oneof![
            (inner.clone(), operator, inner.clone()).prop_map(|(a, o, b)| format!("({a} {o} {b})")),
            (inner.clone(), method, inner.clone()).prop_map(|(a, m, b)| format!("{a}.{m}({b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a}.all(x, {b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a}.map(x, {b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a}[{b}]")),
            inner.clone().prop_map(|a| format!("!{a}")),
            inner.prop_map(|a| format!("string({a})")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn no_text_panics(text in "[a-z0-9'\"()\\[\\]{}.?:+*/<>=!&| \\\\-]{0,60}") {
        let _ = run(&text);
    }

    #[test]
    fn no_expression_panics_and_each_ends(text in expressions()) {
        let _ = run(&text);
        if let Ok(program) = Program::parse(&text) {
            let schema = schema();
            let _ = check(&program, &Declared { names: [("self".to_owned(), Some(&schema))].into(), variables: vec![] });
        }
    }
}
