#!/bin/sh
# What the tasks of a chaos run run: notes of every start and end, and a lock that is held as long as any process of the
# attempt lives. Who can't have it at once runs beside another attempt, and says so.
#
# usage: task.sh FOLDER NAME KIND SECONDS CODE
dir=$1 name=$2 kind=$3 secs=$4 code=$5
log=$dir/$name

# WHAT ATTEMPT UPTIME PID WORKER TOKEN CODE, in one write.
note() {
    read -r up _ </proc/uptime
    echo "$1 $ZKMW_ATTEMPT $up $$ $ZKMW_WORKER $ZKMW_EPOCH $2" >>"$log"
}

exec 9>>"$log.lock"
if ! flock -n 9; then
    note overlap -
    exit 99
fi
note start -
case $kind in
    trap) trap '' TERM ;;
    # Says that all is well when it is told to end.
    polite) trap 'exit 0' TERM ;;
    # Left behind on purpose: it has to be dead before the end is told.
    fork) (trap '' TERM; exec sleep 30) & ;;
    # Fails until two attempts have come to their end, and each leaves something behind outside of its group.
    flaky)
        (trap '' TERM; exec setsid sleep 30) &
        [ "$(grep -c '^end' "$log")" -ge 2 ] || code=7
        ;;
esac
sleep "$secs"
note end "$code"
if [ "$kind" = suicide ]; then kill -9 $$; fi
echo "out $name $ZKMW_ATTEMPT"
exit "$code"
