#!/bin/sh
# tests/run.sh all|quick [pytest arguments]
#   quick  what runs in under a minute: not slow, not serial, no simulated networks
#   all    everything, in four passes: beside each other, then one by one (`serial`), each without and with simulated
#          networks (`lab`)
# JOBS (default 4: most of them wait most of the time) tests run beside each other. NATLAB_REQUIRED=1: where the host forbids simulated networks
# the lab tests fail, instead of being skipped with the reason.
set -u
cd "$(dirname "$0")/.." || exit 2
python=.venv/bin/python
jobs=${JOBS:-4}
notes=$(mktemp -d) || exit 2
trap 'rm -rf "$notes"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# pass NAME COMMAND…: runs it, shows its output, keeps its closing line and its exit code.
pass() {
    name=$1
    shift
    printf '\n### %s\n' "$name"
    # A pipe has the exit code of its last command only, so pytest's goes through a file.
    { "$@" 2>&1; echo $? >"$notes/code"; } | tee "$notes/output"
    code=$(cat "$notes/code")
    case $code in
        0) ran=yes ;;
        5) code=0 ;; # pytest: nothing was selected. Fine for one pass; all of them empty is an error, below
        *) failed="${failed:+$failed, }$name (exit $code)" ;;
    esac
    grep -E '(passed|failed|skipped|error|errors|deselected|no tests ran).* in [0-9.]+s' "$notes/output" | tail -n 1 >>"$notes/closing"
}

in_lab() {
    if "$python" -m lab.rootless >/dev/null; then
        "$python" -m lab.rootless "$@"
    else
        "$@" # the tests find out themselves and skip, or fail, with the reason
    fi
}

failed=
ran=
mode=${1:-all}
[ $# -gt 0 ] && shift
case $mode in
    quick)
        pass "fast tests" "$python" -m pytest -n "$jobs" -m "not slow and not lab and not serial" "$@"
        ;;
    all)
        pass "tests beside each other" "$python" -m pytest -n "$jobs" -m "not serial and not lab" "$@"
        pass "tests one by one" "$python" -m pytest -m "serial and not lab" "$@"
        pass "tests in simulated networks" in_lab "$python" -m pytest -n "$jobs" -m "lab and not serial" "$@"
        pass "tests in simulated networks, one by one" in_lab "$python" -m pytest -m "lab and serial" "$@"
        ;;
    *)
        echo "tests/run.sh: '$mode' is not a selection; expected all or quick" >&2
        exit 2
        ;;
esac

# The closing lines of the passes again, with their sum as the very last one, in pytest's own form.
printf '\n'
cat "$notes/closing"
tr -d '=' <"$notes/closing" | awk '
    {
        sub(/\033\[[0-9;]*m/, "")
        if (match($0, / in [0-9.]+s/)) seconds += substr($0, RSTART + 4, RLENGTH - 5)
        count = split(substr($0, 1, RSTART - 1), part, ",")
        for (i = 1; i <= count; i++) if (split(part[i], word, " ") == 2 && word[1] ~ /^[0-9]+$/) {
            sub(/^error$/, "errors", word[2]); sub(/^warning$/, "warnings", word[2])
            total[word[2]] += word[1]
        }
    }
    END {
        order = split("failed errors passed skipped xfailed xpassed warnings", kind, " ")
        for (i = 1; i <= order; i++) if (kind[i] in total) text = text (text ? ", " : "") total[kind[i]] " " kind[i]
        printf "===== %s in %.2fs =====\n", (text ? text : "no tests ran"), seconds
    }'
if [ -n "$failed" ]; then
    echo "failed: $failed"
    exit 1
fi
if [ -z "$ran" ]; then
    echo "failed: no test was selected"
    exit 1
fi
