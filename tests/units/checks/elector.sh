# The elector.

systemctl start $e
check 'the elector leads and has its command run' \
    'within "pgrep -f \"^sleep 1000\" >/dev/null" && [[ $(prop $e StatusText) == leading* ]]'
systemctl stop $e
check 'its command is stopped with it' '! pgrep -f "^sleep 1000" && [[ $(prop $e Result) == success ]]'
