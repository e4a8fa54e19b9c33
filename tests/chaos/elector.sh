#!/bin/sh
# The command of the electors of a chaos run. Only one may run at a time, else it notes an overlap. Any process of the
# command holds the lock as long as it lives.
#
# usage: elector.sh FILE NAME STEPS
log=$1 name=$2 steps=$3

# WHAT TOKEN UPTIME PID NAME, in one write.
note() {
    read -r up _ </proc/uptime
    echo "$1 $ZKMW_EPOCH $up $$ $name" >>"$log"
}

exec 9>>"$log.lock"
if ! flock -n 9; then
    note overlap
    exit 99
fi
note start
trap 'note end; exit 0' TERM
while [ "$steps" -gt 0 ]; do
    sleep 0.25
    steps=$((steps - 1))
done
note end
