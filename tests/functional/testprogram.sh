#!/bin/bash
# Runs a test program for gotestsum, which runs again what has failed. Of a program that fails outside of its tests (its set-up, a leak) that would be
# no test, and of one that was killed only those that ran then: either might pass. So neither is run again.
for argument in "$@"; do
  [ "$argument" != '-test.run=^$' ] || { echo "the test program failed outside of its tests" >&2; exit 1; }
done
"$@"
status=$?
[ $status -le 1 ] || printf '\npanic: the test program ended with status %d\n' $status # gotestsum's sign to run nothing again
exit $status
