#!/usr/bin/python3
"""count_cases.py FILE: prints 'PASSED FAILED', the number of test cases in a test log.

FILE is meson's testlog*.json (each program's Catch2 summary is read) or a JUnit file. What cannot be
read, a program that ended without a summary, or a skipped case counts as a failure; the output of
programs that failed goes to standard error.
"""

import json
import re
import sys
import xml.etree.ElementTree as ET


def catch_summary(output):
    """(passed, failed) of the last summary that a Catch2 program printed, or None."""
    all_passed = re.findall(r"All tests passed \(\d+ assertions? in (\d+) test cases?\)", output)
    if all_passed:
        return int(all_passed[-1]), 0
    some = re.findall(r"^test cases:\s*(\d+) \|(.*)$", output, re.M)
    if not some:
        return None
    total, rest = int(some[-1][0]), some[-1][1]
    good = re.search(r"(\d+) passed", rest)
    good = int(good.group(1)) if good else 0
    return good, total - good


def count_meson(path):
    passed = failed = 0
    with open(path, encoding="utf-8") as log:
        for line in log:
            test = json.loads(line)
            summary = catch_summary(test.get("stdout", ""))
            ok = test["result"] == "OK"
            if summary is None or (not ok and summary[1] == 0):
                summary = (summary or (0, 0))[0], 1
            passed += summary[0]
            failed += summary[1]
            if not ok:
                print(f"--- {test['name']}: {test['result']}", file=sys.stderr)
                print((test.get("stdout", "") + test.get("stderr", ""))[-4000:], file=sys.stderr)
    return passed, failed


def count_junit(path):
    passed = failed = 0
    for suite in ET.parse(path).getroot().iter("testsuite"):
        tests = int(suite.get("tests", 0))
        bad = sum(int(suite.get(k, 0)) for k in ("failures", "errors", "skipped"))
        passed += tests - bad
        failed += bad
    return passed, failed


counted = count_junit(sys.argv[1]) if sys.argv[1].endswith(".xml") else count_meson(sys.argv[1])
if counted == (0, 0):
    counted = 0, 1  # a run without a test has not passed
print(*counted)
