-- Read one task with its versions and remembered states, for an export.
return {redis.call('HGET', TASKS, arg.field) or '',
        redis.call('HGETALL', VERSIONS), redis.call('LRANGE', STATES, 0, -1)}
