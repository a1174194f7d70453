"""JSON schemas of the published formats, strict: a field that the format does not name is an error.

Open is only what the formats leave open: the value of a code block, and the text wrapper of a task.
"""

from jsonschema import Draft202012Validator


def closed(**properties) -> dict:
    """An object with exactly these fields."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def texts(least: int = 0) -> dict:
    return {"type": "array", "items": {"type": "string"}, "minItems": least}


TEXT = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}
POSITIVE = {"type": "integer", "minimum": 1}
SHARE = {"type": "number", "minimum": 0, "maximum": 1}
TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?$"}
ITEM_ID = {"type": "string", "pattern": "^item_[0-9a-f]{12}$"}
ITEM_IDS = {"type": "array", "items": ITEM_ID, "uniqueItems": True, "minItems": 1}
ITEM_CLASS = {"type": "string", "pattern": "^[A-Z]$"}
USAGE = closed(prompt_tokens=COUNT, completion_tokens=COUNT, total_tokens=COUNT)
REASON = {"enum": ["finish_tool", "max_turns", "error"]}

TASK = closed(
    schema_version={"const": "pythonformer.task.v1"},
    family={"const": "knapsack"},
    seed=COUNT,
    task_id={"type": "string", "pattern": r"^knapsack-\d{10}$"},
    run_name=TEXT,
    generated_at=TIME,
    difficulty=closed(
        n_items=POSITIVE,
        optimal_set_size=POSITIVE,
        capacity=POSITIVE,
        p_valid=SHARE,
        budget_coverage=SHARE,
        max_item_dominance=SHARE,
    ),
    public=closed(
        item_ids=ITEM_IDS,
        capacity=POSITIVE,
        allowed_classes={"type": "array", "items": ITEM_CLASS, "uniqueItems": True, "minItems": 1},
        inspect_budget=POSITIVE,
    ),
    private=closed(
        items={
            "type": "object",
            "propertyNames": ITEM_ID,
            "additionalProperties": closed(weight=POSITIVE, value=POSITIVE, **{"class": ITEM_CLASS}),
        }
    ),
    reference=closed(optimal_item_ids=ITEM_IDS, optimal_value=POSITIVE, optimal_weight=POSITIVE),
    nl={"type": ["object", "null"]},
)

RAN = closed(success={"type": "boolean"}, result={}, output=TEXT, error={"type": ["string", "null"]})
STEP = closed(
    turn=COUNT,
    assistant_text=TEXT,
    code={"type": ["string", "null"]},
    interpreter_result={"oneOf": [RAN, closed(error=TEXT), {"type": "null"}]},
    token_usage=USAGE,
)
EVENTS = {  # of version 1 of the paper
    "StartEvent": closed(task=TEXT),
    "SystemPromptEvent": closed(prompts=texts()),
    "ModelCallEvent": closed(timestamp=TIME, prompt_tokens=COUNT),
    "ModelResponseEvent": closed(timestamp=TIME, completion_tokens=COUNT, total_tokens=COUNT),
    "StepEvent": STEP,
    "ErrorEvent": closed(error=TEXT),
    "FinishEvent": closed(reason=REASON, token_usage=USAGE),
}
LATER_EVENTS = {"UserObservationEvent": closed(turn=COUNT, content=TEXT)}  # of version 3


def trace(events: dict) -> dict:
    kinds = [closed(type={"const": kind}, data=data, timestamp=TIME) for kind, data in events.items()]
    return closed(
        started_at=TIME,
        finished_at=TIME,
        summary=closed(
            task=TEXT,
            system_prompts=texts(1),
            num_steps=COUNT,
            finish_reason=REASON,
            errors=texts(),
            token_usage=USAGE,
        ),
        events={"type": "array", "items": {"oneOf": kinds}, "minItems": 1},
    )


SCORED = closed(
    is_solved={"type": "boolean"},
    score=SHARE,
    metrics=closed(
        agent_value=COUNT,
        optimal_value=POSITIVE,
        optimality_gap=COUNT,
        weight_used=COUNT,
        capacity=POSITIVE,
        items_taken_count=COUNT,
        inspected_count=COUNT,
    ),
)
RESULT = closed(
    status={"enum": ["completed", "timeout", "error"]},
    error={"type": ["string", "null"]},
    started_at={"type": "number"},
    finished_at={"type": "number"},
    result={"oneOf": [SCORED, {"type": "null"}]},
)
RESULT["if"] = {"properties": {"status": {"const": "completed"}}}
RESULT["then"] = {"properties": {"error": {"type": "null"}, "result": SCORED}}
RESULT["else"] = {"properties": {"error": TEXT}}


def said_by(role: str) -> dict:
    return closed(role={"const": role}, content=TEXT)


ROW = closed(
    messages={
        "type": "array",
        "minItems": 3,
        "prefixItems": [said_by("system"), said_by("user"), said_by("assistant")],
        "items": {"oneOf": [said_by("user"), said_by("assistant")]},
    }
)

SCHEMAS = {
    "task": TASK,
    "trace v1": trace(EVENTS),
    "trace v3": trace(EVENTS | LATER_EVENTS),
    "result": RESULT,
    "row": ROW,
}


def problems(value: object, name: str) -> list[str]:
    """Where ``value`` is not of the format ``name`` (a key of SCHEMAS), each as "path: message"."""
    found = Draft202012Validator(SCHEMAS[name]).iter_errors(value)
    return [f"{error.json_path}: {error.message[:200]}" for error in found]


def inconsistencies(trace: dict, result: dict) -> list[str]:
    """What a schema cannot say of a trace and its result: order of events and turns, sums of tokens, agreement."""
    events, summary, found = trace["events"], trace["summary"], []
    kinds = [event["type"] for event in events]
    steps = [event["data"] for event in events if event["type"] == "StepEvent"]
    calls = [event["data"] for event in events if event["type"] == "ModelCallEvent"]
    replies = [event["data"] for event in events if event["type"] == "ModelResponseEvent"]
    shown = [event["data"]["turn"] for event in events if event["type"] == "UserObservationEvent"]
    errors = [event["data"]["error"] for event in events if event["type"] == "ErrorEvent"]
    turns, finish = [step["turn"] for step in steps], events[-1]["data"]

    def check(holds: bool, complaint: str) -> None:
        found.extend([] if holds else [complaint])

    check(kinds[:2] == ["StartEvent", "SystemPromptEvent"], "the events do not begin with start and system prompts")
    check(kinds.count("FinishEvent") == 1 and kinds[-1] == "FinishEvent", "not one FinishEvent, at the end")
    order = [kind for kind in kinds if kind in ("ModelCallEvent", "ModelResponseEvent", "StepEvent")]
    check(order == ["ModelCallEvent", "ModelResponseEvent", "StepEvent"] * len(steps), "not call, response, step")
    check(turns == sorted(set(turns)), "turns do not rise")  # a call that failed leaves a gap
    check(shown in ([], turns), "observations of other turns than the steps'")
    check(summary["num_steps"] == len(steps), "num_steps is not the number of steps")
    check(summary["errors"] == errors, "summary.errors are not those of the events")
    check(events[0]["data"]["task"] == summary["task"], "two tasks")
    check(events[1]["data"]["prompts"] == summary["system_prompts"], "two sets of system prompts")
    for step, call, reply in zip(steps, calls, replies, strict=False):
        usage = step["token_usage"]
        spent = {name: count for name, count in (call | reply).items() if name != "timestamp"}
        check(usage == spent, "a step's usage is not its call's")
        check(sum(usage.values()) == 2 * usage["total_tokens"], "a step's total is not the sum")
        check(step["code"] is None or step["code"].strip() in step["assistant_text"], "code that the text lacks")
        ran = step["interpreter_result"] or {}
        check("success" not in ran or ran["success"] == (ran["error"] is None), "success with an error")
    for name, total in summary["token_usage"].items():
        check(total == sum(step["token_usage"][name] for step in steps), f"summary.{name} is not the steps' sum")
    check(finish == {"reason": summary["finish_reason"], "token_usage": summary["token_usage"]}, "another finish")
    if result["status"] == "completed":
        scored, metrics = result["result"], result["result"]["metrics"]
        check(scored["score"] == metrics["agent_value"] / metrics["optimal_value"], "score is not value by optimum")
        check(metrics["optimality_gap"] == metrics["optimal_value"] - metrics["agent_value"], "another gap")
        check(scored["is_solved"] == (metrics["optimality_gap"] == 0), "solved with a gap")
        check(metrics["weight_used"] <= metrics["capacity"], "too heavy")
        check(result["finished_at"] >= result["started_at"], "time runs backwards")
    return found


def task_inconsistencies(task: dict) -> list[str]:
    """What a schema cannot say of a task: its parts agree."""
    public, items, reference, found = task["public"], task["private"]["items"], task["reference"], []
    best = [items[i] for i in reference["optimal_item_ids"]]
    for complaint, holds in {
        "public and private items differ": set(public["item_ids"]) == set(items),
        "the optimum's value": sum(item["value"] for item in best) == reference["optimal_value"],
        "the optimum's weight": sum(item["weight"] for item in best) == reference["optimal_weight"],
        "the optimum is too heavy": reference["optimal_weight"] <= public["capacity"],
        "the optimum's classes": {item["class"] for item in best} <= set(public["allowed_classes"]),
        "the budget": 1 <= public["inspect_budget"] <= len(items),
        "difficulty": task["difficulty"]
        | {"n_items": len(items), "optimal_set_size": len(best), "capacity": public["capacity"]}
        | {"budget_coverage": round(public["inspect_budget"] / len(items), 2)}
        == task["difficulty"],
    }.items():
        found += [] if holds else [complaint]
    return found
