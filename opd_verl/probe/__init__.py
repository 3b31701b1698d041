"""Before a run: does this teacher have something to teach this student, and can it be taught by OPD?"""
