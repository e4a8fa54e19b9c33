# Ends: of the worker, of the worker with its guard, of the unit.
first='echo $ZKMW_ATTEMPT; [ $ZKMW_ATTEMPT -gt 1 ] || { setsid env -i sleep 882 & exec sleep 883; }'
id=$(zkmw submit --detach "$first")
within 'pgrep -f "^sleep 88[23]$" >/dev/null'
old=$(prop $w MainPID)
kill -9 "$old"
check 'what ran dies with the worker' 'within "! pgrep -f \"^sleep 88[23]\$\" >/dev/null"'
check 'systemd starts another, which runs it again' \
    '[[ $(timeout 30 zkmw wait $id) == 2 && $(prop $w MainPID) != "$old" ]]'

# Without worker and guard the rest of the control group is systemd's to kill, not the next worker's.
id=$(zkmw submit --detach "${first//88/89}")
within 'pgrep -f "^sleep 89[23]$" >/dev/null'
old=$(prop $w MainPID)
guard=$(pgrep -P "$old" -f 'guard' | head -n 1)
kill -STOP "$guard"
kill -9 "$old" "$guard" 2>/dev/null
check 'what ran dies with the worker and its guard, and is run again' \
    '[[ $(timeout 30 zkmw wait $id) == 2 ]] && ! pgrep -f "^sleep 89[23]$"'
check 'systemd killed it, not the next worker' '! journalctl -u $w | grep -qE "left-over|left behind"'

id=$(zkmw submit --detach 'trap "echo asked to end" TERM; sleep 3 & while ! wait; do :; done; echo done $ZKMW_ATTEMPT')
within '[[ $(zkmw list --state running) == *$id* ]]'
systemctl restart $w
check 'a restart waits for what runs, and asks only the worker to end' '[[ $(timeout 30 zkmw wait $id) == "done 1" ]]'

# A unit's limit below what the tasks need: the worker asks for more time.
dropin $w TimeoutStopSec=3
systemctl restart $w
id=$(zkmw submit --detach 'sleep 8; echo done $ZKMW_ATTEMPT')
within '[[ $(zkmw list --state running) == *$id* ]]'
systemctl restart $w
check 'a short TimeoutStopSec= does not cut the grace' \
    '[[ $(timeout 30 zkmw wait $id) == "done 1" ]] && ! journalctl -u $w | grep -q "timed out"'
undo $w
