-- Read one task with its versions.
return {redis.call('HGET', TASKS, arg.field) or '',
        redis.call('HGETALL', VERSIONS)}
