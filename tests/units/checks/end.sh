# The end, without an ensemble.
systemctl stop zookeeper
begin=$SECONDS
systemctl stop $w $m
check 'both stop without an ensemble' \
    '((SECONDS - begin < 8)) && [[ $(prop $w Result)$(prop $m Result) == successsuccess ]]'
check 'nothing is left' '! pgrep -f "$ours"'
