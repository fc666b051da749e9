#!/bin/sh
# tests/run.sh all|quick [pytest arguments]
#   quick  what runs in under a minute: not slow, not serial, no simulated networks
#   all    everything, in four passes: beside each other and one by one (`serial`), each without and with simulated
#          networks (`lab`). Those that need no networks and go one by one, a pod's above all, mostly wait for disks:
#          they run while the first pass does
# JOBS (default 4: most of them wait most of the time) tests run beside each other. NATLAB_REQUIRED=1: where the host forbids simulated networks
# the lab tests fail, instead of being skipped with the reason.
set -u
cd "$(dirname "$0")/.." || exit 2
python=.venv/bin/python
jobs=${JOBS:-4}
# Compiled modules are kept, whatever the environment says: tests start hundreds of interpreters, and pytest compiles every
# file of tests in each process of each pass (10 s of CPU, else 4).
export PYTHONDONTWRITEBYTECODE=
began=$(date +%s)
notes=$(mktemp -d) || exit 2
aside=
trap 'end_aside; rm -rf "$notes"' EXIT
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

# aside COMMAND…: runs it beside what follows. The shell would have it ignore SIGINT, but a pod is to be taken down also
# after Ctrl-C; in a session of its own it hears of that once, from us.
aside() {
    setsid env --default-signal=INT "$@" >"$notes/aside" 2>&1 &
    aside=$!
}

end_aside() {
    if [ -n "$aside" ]; then
        kill -INT "-$aside" 2>/dev/null && wait "$aside"
    fi
}

again() { # again CODE: the output of what ran aside, and how it ended
    cat "$notes/aside"
    return "$1"
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
        aside "$python" -m pytest -m "serial and not lab" "$@"
        pass "tests beside each other" "$python" -m pytest -n "$jobs" -m "not serial and not lab" "$@"
        wait "$aside"
        code=$? aside=
        pass "tests one by one" again "$code"
        pass "tests in simulated networks" in_lab "$python" -m pytest -n "$jobs" -m "lab and not serial" "$@"
        pass "tests in simulated networks, one by one" in_lab "$python" -m pytest -m "lab and serial" "$@"
        ;;
    *)
        echo "tests/run.sh: '$mode' is not a selection; expected all or quick" >&2
        exit 2
        ;;
esac

# The closing lines of the passes again, and as the very last one all results and the time, in pytest's own form.
printf '\n'
cat "$notes/closing"
tr -d '=' <"$notes/closing" | awk -v seconds=$(($(date +%s) - began)) '
    {
        sub(/\033\[[0-9;]*m/, "")
        match($0, / in [0-9.]+s/)
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
