# The end, without an ensemble; and what the journal has by now.
systemctl stop zookeeper
begin=$SECONDS
systemctl stop $w $m
check 'both stop without an ensemble' \
    '((SECONDS - begin < 8)) && [[ $(prop $w Result)$(prop $m Result) == successsuccess ]]'
check 'nothing is left' '! pgrep -f "$ours"'
check 'a warning has its priority in the journal' \
    'journalctl -o cat -p 4..4 _COMM=zkmw | grep -q "connection lost"'
check 'no line has a time of its own, or a prefix' '! journalctl -o cat -u $m -u $w | grep -E "^(\[?20[0-9][0-9]-|<)"'
