"""`python -m opd_verl.alignment`: does a teacher's gradient point toward success, token by token (Unmasking)?"""
