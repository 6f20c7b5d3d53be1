-- Read one task with its versions and remembered states and its list of items, for an export.
return {redis.call('HGET', TASKS, arg.field) or '',
        redis.call('HGETALL', VERSIONS), redis.call('LRANGE', STATES, 0, -1),
        redis.call('HGET', AVAILABILITY, arg.field) or ''}
